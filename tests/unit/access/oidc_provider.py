"""A real OpenID provider as a process: oidc-provider-mock on Authlib, with PKCE demanded and keys that can be rotated.

`python oidc_provider.py` prints its address. A login is a POST of the form that its authorisation page shows.
"""

import sys

import flask
import oidc_provider_mock
import werkzeug.serving
from authlib import jose
from authlib.oauth2.rfc7636 import CodeChallenge
from oidc_provider_mock import _app

CHALLENGES: dict[str, tuple[str | None, str | None]] = {}


class Challenge(CodeChallenge):
    def get_authorization_code_challenge(self, authorization_code):
        return CHALLENGES[authorization_code.code][0]

    def get_authorization_code_challenge_method(self, authorization_code):
        return CHALLENGES[authorization_code.code][1]


class Grant(_app.AuthorizationCodeGrant):
    TOKEN_ENDPOINT_AUTH_METHODS = ["client_secret_basic", "client_secret_post", "none"]  # noqa: RUF012

    def save_authorization_code(self, code, request):
        asked = flask.request.args
        CHALLENGES[code] = (asked.get("code_challenge"), asked.get("code_challenge_method"))
        super().save_authorization_code(code, request)


def main() -> None:
    app = oidc_provider_mock.app()

    @app.before_request
    def demand_pkce() -> None:
        server = flask.g._authlib_authorization_server
        if server._authorization_grants[0][0] is not Grant:
            server._authorization_grants.clear()
            server._token_grants.clear()
            openid = _app.OpenIDCode(False, flask.g.oidc_provider_mock_config.access_token_max_age)
            server.register_grant(Grant, [Challenge(required=True), openid])

    @app.post("/rotate")
    def rotate() -> tuple[str, int]:
        store = flask.g.oidc_provider_mock_storage
        store.jwk = jose.RSAKey.generate_key(is_private=True)
        store.jwk.as_dict(add_kid=True)
        return "", 204

    server = werkzeug.serving.make_server("127.0.0.1", 0, app, threaded=True)
    sys.stdout.write(f"http://127.0.0.1:{server.server_port}\n")
    sys.stdout.flush()
    server.serve_forever()


if __name__ == "__main__":
    main()
