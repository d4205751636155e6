"""What is computed while rounds go on: in line, or by ranks that host no worker, who are asked by mail."""
