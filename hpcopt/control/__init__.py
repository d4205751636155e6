"""What keeps a job of many ranks together: agreement, stopping, signals, the watchdog, the launcher."""
