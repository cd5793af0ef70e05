"""What a workload takes on a machine: measured, fitted and simulated before it runs."""
