"""The ROS 2 node, with a small stand-in for rclpy, which no package index has."""

import importlib.util
import sys
import types

import numpy as np
import pytest

from tests.conftest import REPOSITORY


class Clock:
    """Seconds that a test sets."""

    seconds = 100.0

    def now(self):
        return types.SimpleNamespace(nanoseconds=int(self.seconds * 1e9))


class Node:
    """As rclpy's, as far as the example uses it."""

    parameters: dict = {}

    def __init__(self, name):
        self.clock, self.said, self.topics = Clock(), [], {}
        self.published, self.timers = [], []

    def declare_parameter(self, name, default):
        # rclpy refuses empty lists and values of another type.
        value = self.parameters.get(name, default)
        assert type(value) is type(default) and value != []
        return types.SimpleNamespace(value=value)

    def create_publisher(self, kind, topic, depth):
        assert (kind.__name__, topic) == ("Float64MultiArray", "action")
        return types.SimpleNamespace(
            publish=lambda message: self.published.append(message.data)
        )

    def create_subscription(self, kind, topic, callback, depth):
        self.topics[topic] = (kind.__name__, callback)

    def create_timer(self, period, callback):
        self.timers.append((period, callback))

    def get_clock(self):
        return self.clock

    def get_logger(self):
        def warning(text, *, throttle_duration_sec):
            self.said.append(text)

        return types.SimpleNamespace(warning=warning)

    def hear(self, topic, **fields):
        self.topics[topic][1](types.SimpleNamespace(**fields))

    def tick(self, seconds=0.05):
        """Pass time and call the timer; what it published."""
        self.clock.seconds += seconds
        self.published.clear()
        self.timers[0][1]()
        return list(self.published)


class Policy:
    """Acts by the sum of the observation."""

    def __init__(self):
        self.resets = 0

    def reset(self):
        self.resets += 1

    def __call__(self, obs):
        if not np.isfinite(obs).all():
            raise ValueError("state has entries that are not finite")
        return np.float32([obs.sum(), len(obs)])


@pytest.fixture
def make(monkeypatch):
    """Make the node with parameters."""
    messages = {
        "std_msgs": ("Empty", "Float64MultiArray"),
        "sensor_msgs": ("JointState",),
    }
    fakes = {"rclpy": types.ModuleType("rclpy"), "rclpy.node": types.ModuleType("node")}
    fakes["rclpy.node"].Node = Node
    for package, names in messages.items():
        fakes[package] = types.ModuleType(package)
        fakes[f"{package}.msg"] = types.ModuleType("msg")
        for name in names:
            setattr(fakes[f"{package}.msg"], name, type(name, (), {}))
    for name, module in fakes.items():
        monkeypatch.setitem(sys.modules, name, module)
    path = REPOSITORY / "examples" / "ros2_node.py"
    spec = importlib.util.spec_from_file_location("ros2_node", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def made(**parameters):
        monkeypatch.setattr(Node, "parameters", parameters)
        return module.PolicyNode(Policy())

    return made


def test_the_timer_acts_on_the_newest_observation(make):
    node = make(rate=20.0)
    assert node.timers[0][0] == 0.05 and "joint_states" not in node.topics
    assert node.tick() == [] and node.said == []  # Nothing was seen yet.
    node.hear("observation", data=[1.0, 2.0])
    node.hear("observation", data=[1.0, 5.0])
    assert node.tick() == [[6.0, 2.0]]
    assert node.tick() == [[6.0, 2.0]]
    assert (node.steps, node.silent) == (3, 1)


def test_stale_and_refused_observations_end_the_actions_until_fresh_ones_come(make):
    node = make(stale_after=0.1)
    node.hear("observation", data=[1.0])
    assert node.tick(0.09) == [[1.0, 1.0]]
    resets = node.policy.resets
    assert node.tick(0.02) == [] and "is 0.110 s old" in node.said[-1]
    assert node.tick() == [] and node.policy.resets == resets + 1
    node.hear("observation", data=[2.0])
    assert node.tick(0.01) == [[2.0, 1.0]]
    node.hear("observation", data=[np.nan])
    assert node.tick(0.01) == [] and "refuses an observation: state" in node.said[-1]
    assert node.policy.resets == resets + 2


def test_a_safe_action_takes_the_place_of_silence(make):
    node = make(safe_action=[0.0, 0.5])
    assert node.tick() == [[0.0, 0.5]]
    node.hear("observation", data=[1.0])
    assert node.tick() == [[1.0, 1.0]] and node.tick(1.0) == [[0.0, 0.5]]


def test_joints_are_read_in_the_order_of_the_policy(make):
    node = make(joints=["b", "a"])
    assert node.topics["joint_states"][0] == "JointState"
    names = ["a", "other", "b"]
    seen = []
    node.policy = lambda obs: seen.append(list(obs)) or np.zeros(1)
    node.hear("joint_states", name=names, position=[1, 2, 3], velocity=[4, 5, 6])
    node.tick()
    assert seen == [[3, 1, 6, 4]]
    node.hear("joint_states", name=names, position=[7, 8, 9], velocity=[])
    node.hear("joint_states", name=["a"], position=[7], velocity=[8])
    assert len(node.said) == 2 and "velocity of b, a" in node.said[-1]
    node.tick()
    assert seen[-1] == [3, 1, 6, 4]


def test_a_reset_waits_for_a_new_observation(make):
    node = make()
    node.hear("observation", data=[1.0])
    node.tick()
    resets = node.policy.resets
    node.hear("policy/reset")
    assert node.policy.resets == resets + 1 and node.tick() == []


def test_late_control_steps_are_counted(make, monkeypatch):
    node = make(rate=1e9)
    node.hear("observation", data=[1.0])
    assert len(node.tick(0.0)) == 1 and node.late == 1
    assert node.said == ["1 of 1 control steps were late"]


def test_wrong_parameters_are_refused(make):
    with pytest.raises(ValueError, match="must be positive"):
        make(rate=0.0)
