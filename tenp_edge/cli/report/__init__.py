"""What people see: tables for the terminal. Takes data, returns renderables."""
