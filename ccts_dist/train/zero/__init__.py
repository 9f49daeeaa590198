"""DeepSpeed: its engine, its configuration, and the partitioned state of ZeRO."""
