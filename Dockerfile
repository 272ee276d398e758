# Two images from one file: `docker build --target sockets` (`realtime sockets`, `realtime bridge`) and `--target web`
# (`realtime web`, `realtime recorder`, `realtime migrate`). docs/deployment.md builds an image with a product's own code
# on top of one of them.
#
# The base image is pinned by its digest; deploy/pin-images.sh looks up the current one. The packages are pinned by
# their hashes (requirements/, `make lock`). They are installed before any source is copied, so that a change of a
# source installs nothing again.
ARG PYTHON_IMAGE=python:3.13-slim-bookworm@sha256:67a1e1f215ccda113cfc024e8639049257e88f273898f595b61476d128d387e8

FROM ${PYTHON_IMAGE} AS packages
WORKDIR /src
COPY requirements/sockets.txt requirements/
RUN python -m venv --without-pip /opt/venv \
    && pip --python /opt/venv/bin/python install --no-cache-dir --require-hashes --requirement requirements/sockets.txt

FROM packages AS packages-web
# To install further drivers or extras, name a file of your own in requirements/, with hashes.
ARG REQUIREMENTS=web.txt
COPY requirements/${REQUIREMENTS} requirements/
RUN pip --python /opt/venv/bin/python install --no-cache-dir --require-hashes --requirement "requirements/${REQUIREMENTS}"

FROM ${PYTHON_IMAGE} AS wheel
WORKDIR /src
COPY requirements/build.txt requirements/
RUN pip install --no-cache-dir --root-user-action=ignore --require-hashes --requirement requirements/build.txt
COPY pyproject.toml pytest_realtime_sockets.py README.md LICENSE ./
COPY hub hub
COPY portal portal
COPY presence presence
COPY realtime realtime
RUN pip wheel --no-cache-dir --no-index --no-deps --no-build-isolation --wheel-dir wheels .

FROM packages AS build
COPY --from=wheel /src/wheels wheels
RUN pip --python /opt/venv/bin/python install --no-cache-dir --no-index --no-deps wheels/*.whl

FROM packages-web AS build-web
COPY --from=wheel /src/wheels wheels
RUN pip --python /opt/venv/bin/python install --no-cache-dir --no-index --no-deps wheels/*.whl \
    && SECRET_KEY=only-while-building STATIC_ROOT=/opt/venv/static /opt/venv/bin/realtime collectstatic --noinput

FROM ${PYTHON_IMAGE} AS runtime
RUN pip uninstall --yes --root-user-action=ignore pip \
    && useradd --uid 10001 --system --no-create-home --shell /usr/sbin/nologin realtime
# A product's own packages go into /app.
ENV PATH=/opt/venv/bin:$PATH PYTHONPATH=/app PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
WORKDIR /app
COPY manage.py ./
STOPSIGNAL SIGTERM

FROM runtime AS sockets
COPY --from=build /opt/venv /opt/venv
ENV SOCKETS_HOST=0.0.0.0 SOCKETS_PORT=8001
EXPOSE 8001
HEALTHCHECK --start-period=10s --interval=10s --timeout=5s CMD ["python", "-c", "import os, urllib.request; urllib.request.urlopen('http://127.0.0.1:' + os.environ['SOCKETS_PORT'] + '/healthz', timeout=4)"]
USER 10001
CMD ["realtime", "sockets"]

FROM runtime AS web
COPY --from=build-web /opt/venv /opt/venv
ENV WEB_HOST=0.0.0.0 WEB_PORT=8000 STATIC_ROOT=/opt/venv/static
EXPOSE 8000
HEALTHCHECK --start-period=10s --interval=10s --timeout=5s CMD ["python", "-c", "import os, urllib.request; urllib.request.urlopen('http://127.0.0.1:' + os.environ['WEB_PORT'] + '/healthz', timeout=4)"]
USER 10001
CMD ["realtime", "web"]
