"""python -m benchmarks.gpu"""

from benchmarks.gpu.program import main

main()
