"""The Ray that prepare starts for itself, on one machine."""

import json
import subprocess
import sys

LOCAL = """
import json
import psutil, ray, ray._private.node
from audiodiff_platform.cluster import connected, cpus

node = ray._private.node.Node
with connected(bare=True):
    family = psutil.Process().children(recursive=True)
    answer = ray.get(ray.remote(num_cpus=1)(lambda: 7).remote())
    commands = [" ".join(process.cmdline()) for process in family]
    tokens = ray._private.authentication.authentication_utils.is_token_auth_enabled()
    seen = {"answer": answer, "cpus": cpus(), "commands": commands, "token": tokens, "restored": ray._private.node.Node is node}
_, alive = psutil.wait_procs(family, timeout=30)
print(json.dumps({**seen, "alive": len(alive)}))
"""


def test_a_bare_ray_works_without_autoscaler_and_dashboard_and_leaves_nothing() -> None:
    completed = subprocess.run([sys.executable, "-c", LOCAL], capture_output=True, text=True, check=False)
    assert completed.returncode == 0, completed.stderr
    seen = json.loads(completed.stdout.splitlines()[-1])
    assert seen["answer"] == 7
    assert seen["cpus"] >= 1
    assert seen["alive"] == 0
    assert seen["token"], "what listens asks for Ray's token, as after ray.init alone"
    assert seen["restored"], "whoever starts a Ray otherwise gets all of it"
    assert any("raylet" in command for command in seen["commands"])
    assert not [command for command in seen["commands"] if "autoscaler/_private/monitor.py" in command or "dashboard/dashboard.py" in command]
