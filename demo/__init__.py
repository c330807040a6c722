"""What starts Airflow, the API and the demo on a laptop."""
