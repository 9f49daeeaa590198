"""This process: its command, its launcher, the account that it runs under, and its random seeds."""
