"""Tiny files in the layouts of robomimic and robosuite."""

import json

import h5py
import numpy as np

from dppo_jax.envs.robots import panda

# A hand that points down, scalar last, as robosuite writes it.
DOWN = (1.0, 0.0, 0.0, 0.0)
OSC = dict(
    type="OSC_POSE",
    control_delta=True,
    output_max=[0.05] * 3 + [0.5] * 3,
    output_min=[-0.05] * 3 + [-0.5] * 3,
)


def arm(position, fingers=(0.02, -0.03)):
    return np.array([*position, *DOWN, *fingers])


def write(path, arms, objects, *, rows=3, env="Lift", controller=OSC, **tables):
    """A file of robomimic with one episode, whose observation stays the same."""
    kwargs = {} if controller is None else dict(controller_configs=controller)
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs["env_args"] = json.dumps(dict(env_name=env, env_kwargs=kwargs))
        demo = data.create_group("demo_0")
        demo["actions"] = np.zeros((rows, 7 * max(len(arms), 1)))
        for index, part in enumerate(arms):
            for key, entries in (
                ("eef_pos", part[:3]),
                ("eef_quat", part[3:7]),
                ("gripper_qpos", part[7:]),
            ):
                demo[f"obs/robot{index}_{key}"] = np.tile(entries, (rows, 1))
        if objects is not None:
            demo["obs/object"] = np.tile(objects, (rows, 1))
        for name, table in tables.items():
            demo[name] = table
    return path


def states(rows=2, *, free_bodies=1, index=0, joints=panda.HOME):
    """Robosuite's states: time, arm, fingers, free bodies, velocities."""
    table = np.zeros((rows, 1 + 9 + 7 * free_bodies + 9 + 6 * free_bodies))
    table[:, 1:8] = joints
    table[:, 8:10] = 0.03, -0.02
    first = 10 + 7 * index
    table[:, first : first + 7] = 0.02, -0.01, 0.821, 1.0, 0.0, 0.0, 0.0
    return table


def write_states(path, table, env="Lift"):
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs["env"] = env
        data.attrs["env_info"] = json.dumps(dict(env_name=env, controller_configs=OSC))
        data["demo_1/states"] = table
        data["demo_1/actions"] = np.zeros((len(table), 7))
    return path
