"""Names of a transformer's weights in PyTorch and here.

`#` stands for the number of a layer. PyTorch keeps the weights that make queries, keys
and values in one matrix, and so do we.
"""

import re

_LAYER = "transformer.decoder.layers.#"
_OUR_LAYER = "transformer/layer_#"
# Modules with a weight and a bias.
_MODULES = {
    "modes_head": "logits",
    "transformer.cond_obs_emb": "transformer/observation",
    # The two linear layers stand at these places around an activation.
    "transformer.encoder.0": "transformer/encoder_1",
    "transformer.encoder.2": "transformer/encoder_2",
    "transformer.ln_f": "transformer/norm",
    "transformer.head": "transformer/head",
    f"{_LAYER}.self_attn.out_proj": f"{_OUR_LAYER}/self_attention/out",
    f"{_LAYER}.multihead_attn.out_proj": f"{_OUR_LAYER}/cross_attention/out",
    **{f"{_LAYER}.linear{i}": f"{_OUR_LAYER}/linear_{i}" for i in (1, 2)},
    **{f"{_LAYER}.norm{i}": f"{_OUR_LAYER}/norm_{i}" for i in (1, 2, 3)},
}
_NAMES = {
    "transformer.pos_emb": "transformer/position",
    "transformer.cond_pos_emb": "transformer/observation_position",
    **{
        f"{_LAYER}.{theirs}.in_proj_{leaf}": f"{_OUR_LAYER}/{ours}/in_{our_leaf}"
        for theirs, ours in (
            ("self_attn", "self_attention"),
            ("multihead_attn", "cross_attention"),
        )
        for leaf, our_leaf in (("weight", "kernel"), ("bias", "bias"))
    },
    **{
        f"{theirs}.weight": f"{ours}/{'scale' if '/norm' in ours else 'kernel'}"
        for theirs, ours in _MODULES.items()
    },
    **{f"{theirs}.bias": f"{ours}/bias" for theirs, ours in _MODULES.items()},
}
_NAMES_BACK = {ours: theirs for theirs, ours in _NAMES.items()}


def path_from_reference(name: str) -> str | None:
    """Our path of a weight, "a/b/kernel", or None if it is none of a transformer."""
    return _renamed(name, r"(?<=\.layers\.)\d+(?=\.)", _NAMES)


def path_to_reference(path: str) -> str | None:
    """The inverse of `path_from_reference`."""
    return _renamed(path, r"(?<=/layer_)\d+(?=/)", _NAMES_BACK)


def _renamed(name: str, number: str, names: dict[str, str]) -> str | None:
    found = re.search(number, name)
    other = names.get(re.sub(number, "#", name, count=1))
    return other and other.replace("#", found[0] if found else "#")
