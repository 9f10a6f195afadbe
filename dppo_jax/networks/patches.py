"""Images as sequences of patches, by convolutions that are matrix products.

A convolution is a product of windows and kernel. Products keep their rate in gradients
inside of loops, where XLA on a CPU computes a convolution by its slow routine, and
under `vmap` over parameters (many seeds).
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from dppo_jax.types import Array


class PatchEmbedding(nn.Module):
    """Images as sequences of patches, row by row: [B, H, W, C] -> [B, P, E].

    One layer is a convolution with a stride of the patch size. Two are a convolution
    with half that stride, ReLU, and one of 3 x 3 with stride 2, so that a patch
    overlaps its neighbours. What does not fill a patch at the right and lower edge is
    left out.

    layers: 1 or 2, `embed1` and `embed2` in the published code, whose patch size is 8.
    norm: normalise every channel of every image between the two.
    """

    layers: int
    size: int
    norm: bool
    embed_dim: int
    compute_dtype: str

    @nn.compact
    def __call__(self, images: Array) -> Array:
        stride = self.size if self.layers == 1 else self.size // 2
        x = self._convolution(images, size=self.size, stride=stride, name="conv_1")
        if self.layers == 2:
            if self.norm:
                x = nn.InstanceNorm(
                    epsilon=1e-5, use_fast_variance=False, name="norm_1"
                )(x)
            x = self._convolution(jax.nn.relu(x), size=3, stride=2, name="conv_2")
        return x.reshape(x.shape[0], -1, self.embed_dim)

    def _convolution(self, x: Array, *, size: int, stride: int, name: str) -> Array:
        return Convolution(
            self.embed_dim, size, stride, compute_dtype=self.compute_dtype, name=name
        )(x)


class Convolution(nn.Module):
    """A convolution without padding, [B, H, W, C] -> [B, h, w, features].

    out[i, j] = sum_{a, b} x[stride i + a, stride j + b] kernel[a, b] + bias. Kernel and
    bias start as those of PyTorch, uniform in +-1 / sqrt(size size C).

    size: of the kernel, [size, size, C, features].
    compute_dtype: of the product and of the output; the parameters are float32.
    """

    features: int
    size: int
    stride: int
    compute_dtype: str = "float32"

    @nn.compact
    def __call__(self, x: Array) -> Array:
        shape = (self.size, self.size, x.shape[-1], self.features)
        bound = 1 / np.sqrt(np.prod(shape[:-1]))

        def uniform(key, shape, dtype=jnp.float32):
            return jax.random.uniform(key, shape, dtype, -bound, bound)

        kernel = self.param("kernel", uniform, shape)
        bias = self.param("bias", uniform, (self.features,))
        x, kernel, bias = (a.astype(self.compute_dtype) for a in (x, kernel, bias))
        x = windows(x, size=self.size, stride=self.stride)
        return x @ kernel.reshape(-1, self.features) + bias


def windows(x: Array, *, size: int, stride: int) -> Array:
    """All windows that lie inside, one every `stride` places.

    Windows are cut out in runs of neighbouring places of a row, because copying few
    long runs is faster than copying single places, and so is the gradient.

    Args:
        x: [B, H, W, C], with H and W at least `size`.

    Returns:
        [B, h, w, size size C] with h = (H - size) // stride + 1 and w alike; the
        numbers of a window in the order of a kernel [size, size, C].
    """
    batch, *lengths, channels = x.shape
    rows, columns = ((length - size) // stride + 1 for length in lengths)
    # Cells of stride x stride places. A window covers `covered` of them each way.
    covered = -(-size // stride)
    wanted = [(n - 1 + covered) * stride for n in (rows, columns)]
    x = x[:, : wanted[0], : wanted[1]]
    missing = [(0, n - length) for n, length in zip(wanted, x.shape[1:3])]
    x = jnp.pad(x, ((0, 0), *missing, (0, 0)))
    cells = x.reshape(batch, -1, stride, columns - 1 + covered, stride * channels)
    runs = []
    for row in range(size):
        cell_row, inner_row = divmod(row, stride)
        for cell in range(covered):
            length = min(stride, size - cell * stride) * channels
            runs.append(
                cells[
                    *(slice(None), slice(cell_row, cell_row + rows), inner_row),
                    *(slice(cell, cell + columns), slice(length)),
                ]
            )
    return jnp.concatenate(runs, axis=-1)
