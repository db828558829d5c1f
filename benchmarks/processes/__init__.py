"""Two processes that train together give the masks and weights of one."""
