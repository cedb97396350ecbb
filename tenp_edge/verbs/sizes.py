"""What size was asked for, and for which device."""

from __future__ import annotations

from tenp_edge.errors import UserError
from tenp_edge.planning.options.devices import (
    DeviceProfile,
    load_profile,
    load_profile_file,
    this_machine,
)
from tenp_edge.planning.options.spec import PlanOptions


def choose_profile(options: PlanOptions) -> DeviceProfile:
    """The device: named, from a file, or this machine."""
    if options.profile and options.profile_file:
        raise UserError("--profile and --profile-file name two devices", "one of them")
    if options.profile_file:
        return load_profile_file(options.profile_file)
    return load_profile(options.profile) if options.profile else this_machine()


def require_size(options: PlanOptions) -> None:
    """Raise UserError unless one size is asked for. --ram is the whole budget, a profile subtracts
    what its system keeps."""
    sized = [options.budget_bytes is not None, options.keep is not None]
    has_profile = bool(options.profile or options.profile_file)
    if all(sized):
        raise UserError("--ram and --keep are two sizes, and one is needed", "leave --keep out")
    if not (any(sized) or has_profile):
        raise UserError(
            "one size is needed: --ram, --keep or --profile", "--ram 8GiB, or --keep 0.6"
        )
