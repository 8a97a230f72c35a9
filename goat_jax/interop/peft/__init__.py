"""Reading and writing of PEFT folders: adapters of layers, of experts, and routed ones."""
