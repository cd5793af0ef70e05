"""What the machine has: devices, threads, memory."""
