ARG RELEASE
FROM debian-local:${RELEASE}
RUN apt-get update -qq \
    && apt-get install -y -qq --no-install-recommends python3 python3-venv libgomp1 \
    && rm -rf /var/lib/apt/lists/* \
    && python3 -m venv /usr/local/python
ENV PATH=/usr/local/python/bin:$PATH PIP_CERT=/etc/ssl/certs/ca-certificates.crt LANG=C.UTF-8
