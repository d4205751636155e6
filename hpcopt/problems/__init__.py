"""What is optimised: each rank's share of losses, gradients and Hessian-vector products."""
