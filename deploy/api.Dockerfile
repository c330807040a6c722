# The prediction API without Airflow: deploy/api.lock is requirements.lock without what it does not need.
ARG PYTHON_IMAGE=python:3.11-slim-bookworm
FROM ${PYTHON_IMAGE}

COPY deploy/api.lock /opt/batch-jobs/
RUN pip install --no-cache-dir --no-deps --require-hashes -r /opt/batch-jobs/api.lock

COPY pyproject.toml README.md LICENSE /opt/batch-jobs/
COPY src /opt/batch-jobs/src
RUN pip install --no-cache-dir --no-deps --no-build-isolation /opt/batch-jobs \
    && useradd --uid 50000 --gid 0 --no-create-home batch-jobs \
    && install -d -o 50000 -g 0 -m 0750 /opt/cache

USER 50000:0
ENV PYTHONPATH=/opt/team \
    PYTHONDONTWRITEBYTECODE=1 \
    NUMBA_CACHE_DIR=/opt/cache/numba \
    MPLCONFIGDIR=/opt/cache/matplotlib \
    BATCH_JOBS_MODEL_STORE=/opt/models
CMD ["prediction-api"]
