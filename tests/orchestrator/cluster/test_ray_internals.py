"""Ray's private corners: what each does in the Ray that is installed, and what happens when it is taken away."""

import contextlib
import inspect
import os
import sys
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
import ray
from ray._private import parameter, services

from gpu_actor.contract.errors import ClusterUnavailableError
from orchestrator.cluster import connection
from orchestrator.cluster.address import ClusterAddress
from orchestrator.cluster.ray_internals import Access, any_agent_port, auth_token, probe_access, resolve_auto

CHECK_ALIVE = "/ray.rpc.NodeInfoGcsService/CheckAlive"


class Head(grpc.GenericRpcHandler):
    """The door of a cluster: one method, for those that have the token."""

    def __init__(self, method, token):
        self.method, self.token = method, token

    def service(self, details):
        if details.method != self.method:
            return None
        allowed = self.token is None or ("authorization", f"Bearer {self.token}") in details.invocation_metadata

        def answer(request, context):
            return b"" if allowed else context.abort(grpc.StatusCode.UNAUTHENTICATED, "no token")

        return grpc.unary_unary_rpc_method_handler(answer)


@contextlib.contextmanager
def head(method=CHECK_ALIVE, token=None):
    """Address of a door."""
    server = grpc.server(ThreadPoolExecutor(1), [Head(method, token)])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(None).wait()


@pytest.fixture(autouse=True)
def token_file(tmp_path, monkeypatch):
    for name in ("RAY_AUTH_TOKEN", "RAY_USE_TLS", "RAY_AUTH_MODE", "RAY_ADDRESS"):
        monkeypatch.setenv(name, "")  # so that what is set meanwhile is taken back
        monkeypatch.delenv(name)
    file = tmp_path / "token"
    file.write_text("from-the-file\n")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(file))
    return file


def test_with_every_corner_there(monkeypatch):
    signature = inspect.signature(parameter.RayParams.__init__)
    original = parameter.RayParams.__init__
    with any_agent_port():
        assert parameter.RayParams().dashboard_agent_listen_port is None
        assert parameter.RayParams.__init__ is not original
    assert parameter.RayParams.__init__ is original
    assert "dashboard_agent_listen_port" in signature.parameters
    monkeypatch.setattr(services, "get_ray_address_from_environment", lambda *_: "10.0.0.7:6379")
    assert resolve_auto() == "10.0.0.7:6379"
    with head(token="right") as address:
        seen = [probe_access(address, token) for token in (None, "wrong", "right")]
    assert seen == [Access.WRONG_TOKEN, Access.WRONG_TOKEN, Access.GRANTED]
    assert probe_access(address, None) is Access.NO_ANSWER


@pytest.mark.parametrize("module", [None, "ray._private.parameter"])
def test_without_an_option_for_the_agent_ray_starts_as_it_likes(monkeypatch, module):
    class Params:
        def __init__(self, **options):
            self.options = options

    if module:
        monkeypatch.setitem(sys.modules, module, None)
    else:
        monkeypatch.setattr(parameter, "RayParams", Params)
    with any_agent_port():
        assert Params().options == {}
    monkeypatch.delattr(parameter, "RayParams")
    with any_agent_port():
        pass


def test_without_a_resolver_ray_init_is_given_auto_and_nothing_is_probed(monkeypatch):
    given = []

    def init(**options):
        given.append(options["address"])
        raise ConnectionError("no cluster")

    monkeypatch.delattr(services, "canonicalize_bootstrap_address")
    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(connection, "probe_access", pytest.fail)
    with pytest.raises(ClusterUnavailableError, match="cannot join the Ray cluster at auto"):
        connection.join(ClusterAddress("auto", "the given address"))
    assert given == ["auto"]


@pytest.mark.parametrize("lacks", ["the method", "grpc"])
def test_without_a_way_to_ask_whatever_listens_passes(monkeypatch, lacks):
    with head(method="/ray.rpc.Another/Name" if lacks == "the method" else CHECK_ALIVE) as address:
        if lacks == "grpc":
            monkeypatch.setitem(sys.modules, "grpc", None)
        assert probe_access(address, None) is Access.GRANTED
    assert probe_access(address, None) is Access.NO_ANSWER


def without_loader(monkeypatch):
    monkeypatch.delattr(ray._raylet, "AuthenticationTokenLoader")


def with_the_loader_of_2_52(monkeypatch):
    class Loader:
        instance = classmethod(lambda cls: cls())

        def get_raw_token(self):
            raise AssertionError("never asked like this")

    monkeypatch.setattr(ray._raylet, "AuthenticationTokenLoader", Loader)


@pytest.mark.parametrize("take_away", [without_loader, with_the_loader_of_2_52])
def test_without_a_loader_the_token_is_read_where_ray_documents_it(monkeypatch, tmp_path, token_file, take_away):
    take_away(monkeypatch)
    assert auth_token() == "from-the-file"
    monkeypatch.setenv("RAY_AUTH_TOKEN", "from-the-variable")
    assert auth_token() == "from-the-variable"
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    token_file.unlink()
    assert auth_token() is None
    monkeypatch.delenv("RAY_AUTH_TOKEN_PATH")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert auth_token() is None
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("from-home")
    assert auth_token() == "from-home"


def test_a_cluster_that_wants_a_token_is_joined_without_any_corner_of_the_raylet(monkeypatch, token_file):
    for name in ("AuthenticationTokenLoader", "Config"):
        monkeypatch.delattr(ray._raylet, name)
    joined = []
    monkeypatch.setattr(ray, "init", lambda **options: joined.append((options["address"], os.environ["RAY_AUTH_MODE"])))
    monkeypatch.setattr(connection, "connection_of", lambda context: context)
    with head(token="from-the-file") as address:
        place = ClusterAddress(address, "RAY_ADDRESS")
        connection.join(place)
        assert joined == [(address, "token")]
        token_file.write_text("of another cluster")
        with pytest.raises(ClusterUnavailableError, match="refuses the token that is set here"):
            connection.join(place)
        token_file.unlink()
        with pytest.raises(ClusterUnavailableError, match="wants a token, and none is set here"):
            connection.join(place)
        monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
        with pytest.raises(ClusterUnavailableError, match="but RAY_AUTH_MODE is 'disabled'"):
            connection.join(place)
    with pytest.raises(ClusterUnavailableError, match="no Ray cluster answers at"):
        connection.join(place)
    assert len(joined) == 1
