"""How this process was started: its command, its launcher, and the account that it runs under."""
