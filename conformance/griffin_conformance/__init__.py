"""How to tell a right Griffin from a wrong one."""
