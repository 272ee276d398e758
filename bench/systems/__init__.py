"""The systems under measurement: how to start each, connect to it, and publish to it."""

from bench.systems.base import Peer, Running
from bench.systems.baseline import Baseline
from bench.systems.centrifuge import Centrifuge
from bench.systems.channels import ChannelsOnDaphne, ChannelsOnUvicorn
from bench.systems.ours import Ours, OursDirect, OursInOne
from bench.systems.python_socketio import PythonSocketIO
from bench.systems.socketio import SocketIO

__all__ = ["PEERS", "Peer", "Running"]

PEERS: dict[str, Peer] = {
    peer.name: peer
    for peer in (
        Ours(),
        OursInOne(),
        OursDirect(),
        SocketIO(),
        Centrifuge(),
        PythonSocketIO(),
        ChannelsOnUvicorn(),
        ChannelsOnDaphne(),
        Baseline(),
    )
}
