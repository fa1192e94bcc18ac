DEFAULT_REGISTRY = "registry.example/kaapana"
KAAPANA_BUILD_VERSION = "0.6.0"
