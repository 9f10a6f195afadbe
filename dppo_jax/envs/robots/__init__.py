"""Models of robots, their kinematics in JAX, and the control of their hands."""
