"""The model and this machine: profiles, loading, the bridge, the hub, files, dictionaries, the doctor."""
