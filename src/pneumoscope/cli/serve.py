"""`pneumoscope serve`: run the web interface and the HTTP API."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from pneumoscope.cli.options import database_option, model_options
from pneumoscope.cli.process import garbage_collection_paused
from pneumoscope.core.errors import UsageError

if TYPE_CHECKING:
    from pneumoscope.core.prediction_codes import AgeRequirement
    from pneumoscope.service.auth.openid_connect import OpenIdConnect
    from pneumoscope.service.dicom.configuration import DicomConfiguration

__all__ = ["command"]

_UNITS = {"h": "hours", "d": "days", "w": "weeks"}


class _Age(click.ParamType[timedelta]):
    name = "age"

    def convert(self, value: str | timedelta, param: click.Parameter | None, ctx: click.Context | None) -> timedelta:
        """Convert a text such as "30d" to a duration."""
        if isinstance(value, timedelta):
            return value
        match = re.fullmatch(r"([1-9][0-9]{0,3})([hdw])", value)
        if match is None:
            self.fail(f"{value!r} is not an age; write a number and h, d or w, such as 30d", param, ctx)
        return timedelta(**{_UNITS[match[2]]: int(match[1])})


@click.command("serve", short_help="Run the web interface and the HTTP API.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port",
    default=8000,
    show_default=True,
    type=click.IntRange(0, 65535),
    help="Port to listen on; 0 picks a free one.",
)
@model_options("dicom")
@click.option(
    "--data-dir", type=click.Path(path_type=Path), help="Folder for images and database.  [default: pneumoscope-data]"
)
@database_option
@click.option("--ephemeral", is_flag=True, help="In-memory storage; discarded on exit.")
@click.option(
    "--keep", type=_Age(), metavar="AGE", help="Remove images older than this (30d, 12h, 8w); predictions are kept."
)
@click.option(
    "--keep-identities",
    type=_Age(),
    metavar="AGE",
    help="Remove identities of patients, and names of files, that are older than this; predictions are kept.",
)
@click.option(
    "--pseudonymize",
    "pseudonym_key",
    type=click.Path(path_type=Path),
    metavar="KEYFILE",
    help="Store only pseudonyms of patients, computed with the secret key in this file, and images without their headers.",
)
@click.option(
    "--blind-first",
    is_flag=True,
    help="In the web interface, show a prediction only after the reader has labeled the image.",
)
@click.option(
    "--no-auth",
    is_flag=True,
    help="Serve without authentication, even on a public address, and even if there are tokens.",
)
@click.option(
    "--openid-connect",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Let users sign in to the web interface at the identity provider that this file configures.",
)
@click.option(
    "--public-name", default="", metavar="HOST", help="Host name under which a reverse proxy publishes the service."
)
@click.option(
    "--time-zone",
    default="",
    metavar="ZONE",
    help="Time zone of the web interface, such as Europe/Berlin; the API stays in UTC.  [default: that of this machine, or UTC]",
)
@click.option(
    "--dicom-port", type=click.IntRange(0, 65535), metavar="PORT", help="Receive DICOM images on this port (C-STORE)."
)
@click.option("--dicom-host", default="", metavar="HOST", help="Address of the DICOM node.  [default: that of --host]")
@click.option(
    "--dicom-aet", default="PNEUMOSCOPE", show_default=True, metavar="AET", help="AE title of the DICOM node."
)
@click.option(
    "--dicom-peer",
    "dicom_peers",
    multiple=True,
    metavar="NAME=AET@HOST:PORT",
    help="Node that may send images; repeat for each.",
)
@click.option(
    "--dicom-tls",
    nargs=3,
    type=click.Path(path_type=Path),
    metavar="CERTIFICATE KEY CLIENT_CA",
    help="PEM files: the DICOM node then requires TLS with client certificates.",
)
@click.option(
    "--dicom-config",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="TOML file with the DICOM node, its peers, site rules, destinations of results and require_age; replaces the options"
    " --dicom-*.",
)
@click.option("--open", "open_browser", is_flag=True, help="Open the web interface in a browser.")
@click.pass_context
def command(
    context: click.Context,
    host: str,
    port: int,
    model: dict[str, Any],
    data_dir: Path | None,
    database: str,
    ephemeral: bool,
    keep: timedelta | None,
    keep_identities: timedelta | None,
    pseudonym_key: Path | None,
    blind_first: bool,
    no_auth: bool,
    openid_connect: Path | None,
    public_name: str,
    time_zone: str,
    dicom_port: int | None,
    dicom_host: str,
    dicom_aet: str,
    dicom_peers: tuple[str, ...],
    dicom_tls: tuple[Path, Path, Path] | None,
    dicom_config: Path | None,
    open_browser: bool,
) -> None:
    """Run the web interface and the HTTP API; store images, predictions, reviews and an audit log.

    Open the printed address in a browser and drop images on it. If the database contains a token at the start, see `pneumoscope
    tokens`, every client must authenticate. With --dicom-port, DICOM nodes send images. Ctrl-C or SIGTERM finishes accepted
    requests, then stops.

    Example:  pneumoscope serve --data-dir records
    """
    has_title = context.get_parameter_source("dicom_aet") is not ParameterSource.DEFAULT
    if dicom_config and (dicom_port is not None or has_title or dicom_peers or dicom_tls or dicom_host):
        raise UsageError(
            "--dicom-config cannot be combined with --dicom-port, --dicom-host, --dicom-aet, --dicom-peer or --dicom-tls",
            hint="Set them in the file",
        )
    if dicom_port is None and (has_title or dicom_peers or dicom_tls or dicom_host):
        raise UsageError("--dicom-peer, --dicom-host, --dicom-aet and --dicom-tls need --dicom-port")
    if ephemeral and (data_dir or database):
        raise UsageError("--ephemeral cannot be combined with --data-dir or --database")
    with garbage_collection_paused():
        from pneumoscope.core.addresses import is_loopback
        from pneumoscope.inference.model import load_model
        from pneumoscope.service.server import ServerOptions, serve
        from pneumoscope.service.settings import Settings
        from pneumoscope.service.storage.pseudonyms import Pseudonymizer, read_key
        from pneumoscope.service.time_zone import find_time_zone

    options = ServerOptions(
        host=host,
        port=port,
        folder=None if ephemeral else data_dir or Path("pneumoscope-data"),
        database=database,
        no_auth=no_auth,
        openid_connect=_read_provider(openid_connect) if openid_connect else None,
        open_browser=open_browser,
    )
    settings = Settings(
        loopback=is_loopback(host),
        public_name=public_name,
        keep=keep,
        keep_identities=keep_identities,
        blind_first=blind_first,
        time_zone=find_time_zone(time_zone),
        pseudonymizer=Pseudonymizer(read_key(pseudonym_key)) if pseudonym_key else None,
        dicom=_dicom_configuration(dicom_config, dicom_port, dicom_host or host, dicom_aet, dicom_peers, dicom_tls),
    )
    model["require_age"] = _age_requirement(context, model["require_age"], settings.dicom.require_age)
    with contextlib.closing(load_model(**model, threads=1, isolated=True)) as loaded:
        serve(loaded, settings, options, echo=lambda text: click.echo(text, err=True))


def _age_requirement(context: click.Context, option: AgeRequirement, stated: AgeRequirement | None) -> AgeRequirement:
    """Return the value of --require-age, or the configured one if the option is not given.

    Raises:
        UsageError: The option contradicts the configuration.
    """
    if stated is None or stated == option:
        return option
    if context.get_parameter_source("require_age") is not ParameterSource.DEFAULT:
        raise UsageError(
            f'--require-age {option} contradicts require_age = "{stated}" in the file of --dicom-config',
            hint="Leave one of them out",
        )
    return stated


def _read_provider(file: Path) -> OpenIdConnect:
    from pneumoscope.service.auth.openid_connect import OpenIdConnect, read_configuration  # an extra

    return OpenIdConnect(read_configuration(file))


def _dicom_configuration(
    file: Path | None,
    port: int | None,
    host: str,
    ae_title: str,
    peers: Sequence[str],
    tls_files: tuple[Path, Path, Path] | None,
) -> DicomConfiguration:
    """Return the configuration from a file, or else from the options --dicom-*."""
    from pneumoscope.service.dicom.configuration import DicomConfiguration
    from pneumoscope.service.dicom.configuration_file import read_configuration
    from pneumoscope.service.dicom.node_settings import DicomSettings, parse_peer, tls_contexts
    from pneumoscope.service.dicom.start_checks import require_files

    if file:
        configuration = read_configuration(file)
        require_files(configuration)
        return configuration
    if port is None:
        return DicomConfiguration()
    tls, client_tls = tls_contexts(*tls_files) if tls_files else (None, None)
    node = DicomSettings(
        host=host,
        port=port,
        ae_title=ae_title,
        peers=tuple(map(parse_peer, peers)),
        tls=tls,
        client_tls=client_tls,
    )
    return DicomConfiguration(node)
