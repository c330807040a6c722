#!/bin/bash
# Make the images that docker-compose.yaml builds upon from Debian's packages, for a try where no
# registry of images is reached; not for production. It needs root, debootstrap and Docker.
#
#   deploy/bases/make.sh >> .env && docker compose -f docker-compose.yaml -f deploy/bases/compose.yaml up --build
set -euo pipefail

here=$(cd -- "$(dirname -- "$0")" && pwd)
work=${WORK:-$(mktemp -d)}

# A release of Debian as an image, with the authorities that this machine trusts.
release() {
    docker image inspect "debian-local:$1" >/dev/null 2>&1 && return
    [ -d "$work/$1" ] || debootstrap --variant=minbase --include=ca-certificates,curl "$1" "$work/$1" \
        http://deb.debian.org/debian >&2
    cp /etc/ssl/certs/ca-certificates.crt "$work/$1/etc/ssl/certs/"
    tar -C "$work/$1" --exclude=./var/cache/apt/archives/*.deb -c . | docker import - "debian-local:$1" >&2
}

image() { # NAME RELEASE: as NAME.Dockerfile tells
    release "$2"
    docker build --quiet --network host --build-arg "RELEASE=$2" --file "$here/$1.Dockerfile" \
        --tag "$1-local:$2" "$here" >&2
}

image python bookworm
image airflow bookworm
image postgres trixie
image redis trixie
image nginx sid
cat <<'EOF'
PYTHON_IMAGE=python-local:bookworm
AIRFLOW_IMAGE=airflow-local:bookworm
POSTGRES_IMAGE=postgres-local:trixie
REDIS_IMAGE=redis-local:trixie
NGINX_IMAGE=nginx-local:sid
EOF
