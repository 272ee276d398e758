# Two images from one file: `docker build --target sockets` (runsockets, runbridge) and `--target web` (runweb,
# runrecorder, migrate). README, "Running it for real", says what to set.

FROM python:3.13-slim-bookworm AS build
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY realtime realtime
COPY hub hub
COPY portal portal
COPY presence presence
RUN python -m venv --without-pip /opt/venv \
    && pip --python /opt/venv/bin/python install --no-cache-dir --constraint constraints.txt .

FROM build AS build-web
# More extras or drivers than the web side's own: --build-arg EXTRAS=web,postgres
ARG EXTRAS=web
RUN pip --python /opt/venv/bin/python install --no-cache-dir --constraint constraints.txt ".[${EXTRAS}]"
WORKDIR /app
COPY manage.py ./
RUN SECRET_KEY=only-while-building /opt/venv/bin/python manage.py collectstatic --noinput

FROM python:3.13-slim-bookworm AS runtime
RUN pip uninstall --yes --root-user-action=ignore pip \
    && useradd --uid 10001 --system --no-create-home --shell /usr/sbin/nologin realtime
ENV PATH=/opt/venv/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
WORKDIR /app
COPY manage.py ./
STOPSIGNAL SIGTERM

FROM runtime AS sockets
COPY --from=build /opt/venv /opt/venv
ENV SOCKETS_HOST=0.0.0.0 SOCKETS_PORT=8001
EXPOSE 8001
HEALTHCHECK --start-period=10s --interval=10s --timeout=5s CMD ["python", "-c", "import os, urllib.request; urllib.request.urlopen('http://127.0.0.1:' + os.environ['SOCKETS_PORT'] + '/healthz', timeout=4)"]
USER 10001
CMD ["python", "manage.py", "runsockets"]

FROM runtime AS web
COPY --from=build-web /opt/venv /opt/venv
ENV WEB_HOST=0.0.0.0 WEB_PORT=8000
EXPOSE 8000
HEALTHCHECK --start-period=10s --interval=10s --timeout=5s CMD ["python", "-c", "import os, urllib.request; urllib.request.urlopen('http://127.0.0.1:' + os.environ['WEB_PORT'] + '/healthz', timeout=4)"]
USER 10001
CMD ["python", "manage.py", "runweb"]
