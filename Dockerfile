# The image of configs/kuberay.yaml, and of `docker run` on one machine: docs/operate.md.
FROM python:3.11-slim-bookworm

# wget: KubeRay's probes call it
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends wget \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 1000 loray \
    && install -d -o loray -g loray /data

WORKDIR /opt/loray
COPY constraints.txt pyproject.toml README.md LICENSE ./
COPY gpu_actor gpu_actor
COPY orchestrator orchestrator
RUN pip install --no-cache-dir -c constraints.txt '.[quant,data,gguf,postgres,report,tensorboard]'

USER 1000
WORKDIR /data
ENV LORAY_HOME=/data/loray \
    RAY_AUTH_MODE=token \
    RAY_USAGE_STATS_ENABLED=0 \
    PYTHONUNBUFFERED=1
CMD ["loray", "serve"]
