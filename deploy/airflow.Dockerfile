# Airflow's official image without its ninety providers: what we need is in deploy/airflow.lock, which
# is requirements.lock without what only tests and checks need, and whole: no dependency is looked up.
ARG AIRFLOW_IMAGE=apache/airflow:slim-3.3.2-python3.11
FROM ${AIRFLOW_IMAGE}

COPY --chown=root:root deploy/airflow.lock /opt/batch-jobs/
RUN pip install --no-cache-dir --no-deps --require-hashes -r /opt/batch-jobs/airflow.lock

COPY --chown=root:root pyproject.toml README.md LICENSE /opt/batch-jobs/
COPY --chown=root:root src /opt/batch-jobs/src
RUN cp -r /opt/batch-jobs /tmp/build \
    && pip install --no-cache-dir --no-deps --no-build-isolation /tmp/build \
    && rm -rf /tmp/build

COPY --chown=root:root dags /opt/batch-jobs/dags
COPY --chown=root:root plugins /opt/batch-jobs/plugins
COPY --chown=root:root utils /opt/batch-jobs/utils
COPY --chown=root:root deploy/init.sh deploy/healthy.py /opt/batch-jobs/

# Settings come from the environment. An empty file keeps Airflow from writing one with secrets of
# its own, which it could not on a read-only root; a new volume takes the owner of its folder.
USER root
RUN touch /opt/airflow/airflow.cfg && install -d -o airflow -g root -m 0750 /opt/models /opt/cache
USER airflow

# What numba compiles and matplotlib's fonts are kept in a folder that is not read-only.
ENV PYTHONPATH=/opt/batch-jobs:/opt/team \
    PYTHONDONTWRITEBYTECODE=1 \
    NUMBA_CACHE_DIR=/opt/cache/numba \
    MPLCONFIGDIR=/opt/cache/matplotlib \
    AIRFLOW__CORE__DAGS_FOLDER=/opt/batch-jobs/dags \
    AIRFLOW__CORE__PLUGINS_FOLDER=/opt/batch-jobs/plugins \
    AIRFLOW__CORE__LOAD_EXAMPLES=False \
    BATCH_JOBS_MODEL_STORE=/opt/models
