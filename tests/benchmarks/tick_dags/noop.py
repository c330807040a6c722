"""As many tasks as `dags/predict.py` has, in the same shape, that do nothing."""

from airflow.providers.standard.operators.python import PythonOperator
from airflow.sdk import DAG

with DAG(dag_id="noop", schedule=None, is_paused_upon_creation=False):
    plan = PythonOperator(task_id="plan", python_callable=lambda: [{"part": 0}])
    score = PythonOperator.partial(task_id="score", python_callable=lambda part: part).expand(
        op_kwargs=plan.output
    )
    publish = PythonOperator(task_id="publish", python_callable=len, op_args=[plan.output])
    PythonOperator(task_id="answer", python_callable=print)
    prune = PythonOperator(task_id="prune", python_callable=print)
    score >> publish >> [PythonOperator(task_id="monitor", python_callable=print), prune]
