"""The socket side on the channel layer that channels-redis brings."""

from realtime.settings.sockets import *  # noqa: F403
from realtime.settings.sockets import REALTIME

CHANNEL_LAYERS = {
    "default": {
        "BACKEND": "channels_redis.pubsub.RedisPubSubChannelLayer",
        "CONFIG": {"hosts": [{"address": REALTIME["REDIS_URL"]}], "prefix": REALTIME["PREFIX"]},
    }
}
