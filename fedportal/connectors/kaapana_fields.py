"""What an operator is asked for when a Kaapana is registered."""

from __future__ import annotations

from fedportal.connectors.fields import Field

FIELDS = (
    Field(
        "base_url",
        "Address",
        "https:// and the very name (and port, if it is not 443) that Kaapana is configured with.",
        kind="url",
        placeholder="https://kaapana.hospital.example",
    ),
    Field(
        "generation",
        "Version",
        "Until 0.6 Kaapana tells projects by a cookie, from 0.7 on by the address.",
        kind="choice",
        default="0.6",
        choices=(("0.6", "0.6 or older"), ("0.7", "0.7 or newer")),
    ),
    Field(
        "control",
        "Control",
        "How runs are started. Through its Airflow the portal reads logs while a run goes on, and its account needs the "
        "realm role “admin”. As workflows of the project, its account need only be a member of the project; the log of a "
        "run comes with its end.",
        kind="choice",
        default="airflow",
        choices=(
            ("airflow", "through its Airflow (realm role admin)"),
            ("workflow", "as workflows of the project (a member of it)"),
        ),
    ),
    Field("project", "Project", "The project whose datasets take part.", default="admin"),
    Field(
        "grant",
        "Signs in",
        "With a client of its own if the site's administrator can make one; else with a user (until 0.6) or by a "
        "code that a person confirms (from 0.7 on).",
        kind="choice",
        default="client",
        choices=(
            ("client", "as a client (client credentials)"),
            ("password", "with user and password"),
            ("device", "by device login"),
        ),
    ),
    Field("client_id", "Client", "Id of the client in Keycloak.", default="fedportal"),
    Field(
        "client_secret",
        "Client's secret",
        "Needed to sign in as a client; a public client has none.",
        kind="secret",
        required=False,
    ),
    Field("username", "User", "For the sign-in with user and password.", required=False),
    Field("password", "Password", "For the sign-in with user and password.", kind="secret", required=False),
    Field(
        "refresh_token",
        "Refresh token",
        "The device login puts it here.",
        kind="secret",
        required=False,
        advanced=True,
        renewed=True,
    ),
    Field(
        "ca_certificate",
        "Certificate of the authority",
        "PEM, where the site's certificate is not from a public authority.",
        kind="file",
        required=False,
    ),
    Field(
        "realm",
        "Realm",
        "Path of the Keycloak realm.",
        default="auth/realms/kaapana",
        required=False,
        advanced=True,
    ),
    Field(
        "audience",
        "Audience",
        "What the site's proxy wants in tokens.",
        default="kaapana",
        required=False,
        advanced=True,
    ),
    Field(
        "verify",
        "Verify the certificate",
        "Switch off for a trial only: whoever sits in between could read everything.",
        kind="flag",
        required=False,
        default=True,
        advanced=True,
    ),
)
