"""An exported policy as a ROS 2 node: an action for each control period.

    python -m experiments.deploy runs/can_fast/finetune can_policy
    python examples/ros2_node.py --ros-args -p folder:=can_policy -p rate:=20.0

It needs a sourced ROS 2 (rclpy, std_msgs, sensor_msgs), the folder that
`experiments.deploy` wrote, and JAX with flatbuffers (or onnxruntime, `runtime:=onnx`).

    topic              type                              what
    /observation       std_msgs/Float64MultiArray        the observation, in task units
      or /joint_states sensor_msgs/JointState            positions, then velocities, of
                                                         `joints` in this order
    /action            std_msgs/Float64MultiArray        the action, in task units
    /policy/reset      std_msgs/Empty                    an episode begins

A timer acts at `rate`, on the newest observation. The node is silent, and forgets the
chunk that it planned, if there is no observation that is younger than `stale_after`
seconds or the policy refuses it, such as one with a NaN; with `safe_action` it
publishes that instead. So give the driver of the robot a watchdog that stops it if
actions end.
Observations are timed by their arrival, because the clocks of two computers differ.
"""

import importlib.util
import time
from pathlib import Path
from typing import Any

import numpy as np
import rclpy
from rclpy.node import Node
from sensor_msgs.msg import JointState
from std_msgs.msg import Empty, Float64MultiArray

# Parameters with their defaults.
PARAMETERS: dict[str, Any] = {
    "folder": "",  # what experiments.deploy wrote
    "runtime": "jax",  # or "onnx"
    "rate": 20.0,  # control steps per second
    "stale_after": 0.1,  # seconds
    "joints": [""],  # names; then observations are JointState
    "safe_action": [float("nan")],  # what to publish if observations are stale
}


def load(folder: str, runtime: str) -> Any:
    """The policy in the folder, by the loader that lies beside it."""
    path = Path(folder) / "exported_policy.py"
    spec = importlib.util.spec_from_file_location("exported_policy", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.ExportedPolicy(folder, runtime=runtime)


class PolicyNode(Node):
    """See the top of the file.

    late: control steps whose action took longer than a period.
    silent: control steps without a usable observation.
    """

    def __init__(self, policy: Any = None) -> None:
        super().__init__("policy")
        values = {
            name: self.declare_parameter(name, default).value
            for name, default in PARAMETERS.items()
        }
        if not (values["rate"] > 0 and values["stale_after"] > 0):
            raise ValueError("rate and stale_after must be positive")
        load_it = policy is None
        self.policy = load(values["folder"], values["runtime"]) if load_it else policy
        self.joints = [name for name in values["joints"] if name]
        self.safe_action = np.asarray(values["safe_action"])
        self.period, self.stale_after = 1 / values["rate"], values["stale_after"]
        self.late = self.silent = self.steps = 0
        self.newest: np.ndarray | None = None
        self.arrived, self.was_silent = 0.0, False
        self.publisher = self.create_publisher(Float64MultiArray, "action", 1)
        if self.joints:
            self.create_subscription(JointState, "joint_states", self.see_joints, 1)
        else:
            self.create_subscription(Float64MultiArray, "observation", self.see, 1)
        self.create_subscription(Empty, "policy/reset", self.reset, 1)
        self.create_timer(self.period, self.act)
        self.policy.reset()

    def see(self, message: Any) -> None:
        self.newest, self.arrived = np.array(message.data, np.float64), self.now()

    def see_joints(self, message: Any) -> None:
        """Sort joints as the policy reads them; a message that lacks one is dropped."""
        places = {name: i for i, name in enumerate(message.name)}
        values = (message.position, message.velocity)
        try:
            found = [x[places[joint]] for x in values for joint in self.joints]
        except (KeyError, IndexError):
            wanted = ", ".join(self.joints)
            self.warn(f"joint_states lacks a position or velocity of {wanted}")
            return
        self.newest, self.arrived = np.array(found, np.float64), self.now()

    def reset(self, message: Any) -> None:
        """Begin an episode, with the next observation."""
        self.policy.reset()
        self.newest = None

    def act(self) -> None:
        """A control step."""
        began = time.perf_counter()
        self.steps += 1
        action = self.next_action()
        if action is None:
            self.silent += 1
            if not self.was_silent:
                self.policy.reset()  # What was planned is too old to go on with.
            self.was_silent = True
            if np.isfinite(self.safe_action).all():
                self.publish(self.safe_action)
            return
        self.was_silent = False
        self.publish(action)
        if time.perf_counter() - began > self.period:
            self.late += 1
            self.warn(f"{self.late} of {self.steps} control steps were late")

    def next_action(self) -> np.ndarray | None:
        if self.newest is None:
            return None
        age = self.now() - self.arrived
        if age > self.stale_after:
            self.warn(f"the newest observation is {age:.3f} s old")
            return None
        try:
            action = np.asarray(self.policy(self.newest), np.float64)
        except ValueError as error:
            self.warn(f"the policy refuses an observation: {error}")
            return None
        return action if np.isfinite(action).all() else None

    def publish(self, action: np.ndarray) -> None:
        message = Float64MultiArray()
        message.data = [float(x) for x in action]
        self.publisher.publish(message)

    def now(self) -> float:
        """Seconds of the node's clock, which a simulator may set."""
        return self.get_clock().now().nanoseconds / 1e9

    def warn(self, text: str) -> None:
        """Log at most once a second."""
        self.get_logger().warning(text, throttle_duration_sec=1.0)


def main() -> None:
    rclpy.init()
    node = PolicyNode()
    try:
        rclpy.spin(node)
    except KeyboardInterrupt:
        pass
    finally:
        node.get_logger().info(
            f"{node.steps} control steps, {node.late} late, {node.silent} silent"
        )
        node.destroy_node()
        rclpy.try_shutdown()


if __name__ == "__main__":
    main()
