"""Build hook: ``SPEC.md`` stands beside its package for people, and in it for programs."""

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class SpecificationHook(BuildHookInterface):
    """Puts the specification into wheels; a checkout that is installed editable has it already."""

    def initialize(self, version, build_data):
        if version == "standard":
            build_data["force_include"]["conformance/SPEC.md"] = "griffin_conformance/SPEC.md"
