"""Settings of a backbone with two databases."""

import os

import dj_database_url

from realtime.settings.web import *  # noqa: F403

DATABASES["other"] = dj_database_url.parse(os.environ["OTHER_URL"])  # noqa: F405
