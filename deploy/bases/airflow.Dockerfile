# Like Airflow's own image: its user, its folders, and an entry point that waits for the database
# unless it is told not to.
ARG RELEASE
FROM debian-local:${RELEASE}
RUN apt-get update -qq \
    && apt-get install -y -qq --no-install-recommends python3 python3-venv libgomp1 dumb-init \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 50000 --gid 0 --create-home airflow \
    && install -d -o airflow -g root -m 0775 /opt/airflow /opt/airflow/logs
COPY airflow-entrypoint.sh /entrypoint
USER airflow
RUN python3 -m venv /home/airflow/.local
ENV PATH=/home/airflow/.local/bin:$PATH PIP_CERT=/etc/ssl/certs/ca-certificates.crt \
    AIRFLOW_HOME=/opt/airflow LANG=C.UTF-8
WORKDIR /opt/airflow
ENTRYPOINT ["/usr/bin/dumb-init", "--", "/entrypoint"]
