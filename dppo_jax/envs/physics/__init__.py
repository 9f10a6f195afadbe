"""Three physics engines for MuJoCo models, with one pure interface; see `build`."""

from dppo_jax.envs.physics.build import (
    ENGINES,
    Physics,
    compile_model,
    make_physics,
    resolve_engine,
)
from dppo_jax.envs.physics.state import PhysicsState, change_names, override_names

__all__ = [
    "ENGINES",
    "Physics",
    "PhysicsState",
    "change_names",
    "compile_model",
    "make_physics",
    "override_names",
    "resolve_engine",
]
