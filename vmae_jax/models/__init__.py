"""Networks: NNX modules that hold parameters and static numbers, no configs, no losses."""
