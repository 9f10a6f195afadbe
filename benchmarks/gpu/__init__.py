"""What one GPU does with this project, in eight minutes, the most telling rows first.

    python -m benchmarks.gpu [--max-minutes 8] [--only TABLE ...] [--engines mjx ...]
        [--data FOLDER] [--small] [--json PATH]

Tables, in the order in which they are measured:

- `end_to_end`: control steps per second of Hopper and HalfCheetah, contacts on, in
  three columns. `physics`: environments under random actions; `acting`: the same
  roll-out with the actions of the diffusion policy, all K denoising steps of every
  chunk; `learning`: whole iterations of fine-tuning, twenty updates each.
- `time_to_target`: from demonstrations to a mean success or return, a row for every
  evaluation on the way; `seconds` count from before cloning, compiling included.
  `avoid` makes its own demonstrations, Hopper needs `--data`.
- `seeds`: an iteration of many seeds of `avoid` side by side.
- `denoising`, `update`, `pretrain`, `matmul`: parts by precision. "tensorfloat32" lets
  float32 products round their operands to ten bits, "bfloat16" is `compute_dtype` of
  policy and critic.

Rows are written to `benchmarks/results/<device>-<date>.json` as they come. On a GPU
compiling takes most of the time (a minute and a half for a row of Hopper on MJX), and
`--max-minutes` holds for it too: a row that is not done by then is cut off. One that
fails (memory, compiler) says so and the others go on; what this machine or version
cannot do, and what no time is left for, is listed as skipped, with the reason.
`--small` measures the same at sizes for a CPU, to try the program out.
"""
