"""Measures this project on one GPU in eight minutes, the most important rows first.

    python -m benchmarks.gpu [--max-minutes 8] [--only TABLE ...] [--engines mjx ...]
        [--data FOLDER] [--small] [--json PATH]

Tables, in the order in which they are measured:

- `end_to_end`: control steps per second of Hopper and HalfCheetah with contacts, in
  three columns. `physics`: environments under random actions; `acting`: the same
  roll-out with the actions of the diffusion policy, all K denoising steps of every
  chunk; `learning`: whole iterations of fine-tuning with twenty updates each.
- `time_to_target`: time from demonstrations to a mean success or return, one row per
  evaluation. `seconds` start before cloning and include compiling. `avoid` makes its
  own demonstrations, Hopper needs `--data`.
- `seeds`: an iteration of many seeds of `avoid` side by side.
- `denoising`, `update`, `pretrain`, `matmul`: parts by precision. "tensorfloat32" lets
  float32 products round their operands to ten bits, "bfloat16" is `compute_dtype` of
  policy and critic.

Each row is written to `benchmarks/results/<device>-<date>.json` at once. On a GPU
compiling takes most of the time (a minute and a half for a row of Hopper on MJX), and
`--max-minutes` includes it: a row that is not done by then is cut off. A row that fails
(memory, compiler) holds the error, and the others continue. Rows that this machine or
version cannot measure, or that have no time left, are listed as skipped with the
reason. `--small` measures the same at sizes for a CPU, to try the program out.
"""
