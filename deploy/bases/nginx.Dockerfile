ARG RELEASE
FROM debian-local:${RELEASE}
RUN groupadd --gid 101 nginx && useradd --uid 101 --gid 101 nginx \
    && apt-get update -qq -o Acquire::Check-Valid-Until=false \
    && apt-get install -y -qq --no-install-recommends nginx-light \
    && rm -rf /var/lib/apt/lists/*
CMD ["nginx", "-g", "daemon off;"]
