# What it is for: an MLflow server that speaks PostgreSQL; compose.yaml builds it.
# The command: docker compose -f cluster/deploy/compose.yaml build mlflow
FROM python:3.11-slim-bookworm
RUN pip install --no-cache-dir mlflow==3.17.2 psycopg2-binary==2.9.13 \
    && useradd --create-home --uid 1000 mlflow \
    && install --directory --owner=mlflow /artifacts
USER 1000
WORKDIR /home/mlflow
EXPOSE 5000
CMD ["mlflow", "server", "--host", "0.0.0.0", "--port", "5000", "--serve-artifacts", "--artifacts-destination", "/artifacts"]
