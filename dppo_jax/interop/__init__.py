"""Exchange with other implementations."""

from dppo_jax.interop.reference_params import params_from_reference, params_to_reference

__all__ = ["params_from_reference", "params_to_reference"]
