"""From an empty database to a process that serves: schema, first admin, settings, start and stop."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from pathlib import Path

import pytest
import sqlalchemy as sa

from services import sql
from services.environment import Environment, SettingError
from services.rpc import channel
from services.user import store
from services.user.bootstrap import create_first_admin
from services.user.domain import password as password_rules
from services.user.passwords import common_passwords
from services.user.settings import Settings
from services.user.store import tables
from tallystick.event.v1 import event_pb2
from tallystick.user.v1 import auth_service_pb2, auth_service_pb2_grpc
from tests import schema
from tests.eventually import eventually
from tests.user_service import serving_users, surroundings, write_key_encryption_key

ROOT = Path(__file__).parents[1]


@pytest.fixture
async def engine(database_url):
    value = sql.create_engine(database_url("user"))
    yield value
    await value.dispose()


async def test_the_migrations_make_the_tables_the_store_knows(database_url):
    assert await schema.differences(database_url("user"), store.metadata) == []


async def test_the_migrations_make_nobody(engine):
    async with engine.begin() as connection:
        for table in tables.metadata.sorted_tables:
            assert (await connection.execute(sa.select(table))).all() == []


async def test_the_first_admin_gets_a_random_password_once(engine):
    first = await create_first_admin(engine)
    second = await create_first_admin(engine)

    assert first.username == "admin"
    assert len(first.password) >= 24
    password_rules.check(first.password, first.username, common_passwords())
    assert second is None


async def test_of_two_who_make_the_first_admin_at_once_one_does(engine):
    made = await asyncio.gather(*(create_first_admin(engine) for _ in range(3)))

    assert sum(each is not None for each in made) == 1


async def test_the_first_admin_signs_in_and_is_on_record(
    tls_for, valkey_url, database_url, tmp_path
):
    async with serving_users(tls_for, valkey_url, database_url("user"), tmp_path) as users:
        admin = users.around.admin
        session = await users.sign_in(admin.username, admin.password)

        event = (await users.around.events())[0]
        assert event.subject == session.user
        assert event.actor == "services/user"
        assert event.user_changed.change == event_pb2.UserChanged.CHANGE_REGISTERED


async def test_somebody_who_took_the_name_first_keeps_it(
    tls_for, valkey_url, database_url, tmp_path
):
    url = database_url("user")
    async with serving_users(tls_for, valkey_url, url, tmp_path) as users:
        async with users.around.database() as connection:
            await connection.execute(sa.update(tables.users).values(role="USER"))
        async with surroundings(tls_for, valkey_url, url, tmp_path) as again:
            assert again.admin.username == "admin-2"


def environment(tls, directory, database_url, redis_url, **changes):
    variables = {
        "LISTEN": "127.0.0.1:0",
        "DATABASE_URL": database_url,
        "REDIS_URL": redis_url,
        "TLS_CERT_FILE": str(tls.certificate_file),
        "TLS_KEY_FILE": str(tls.key_file),
        "TLS_CA_FILE": str(tls.ca_file),
        "KEK_FILE": str(write_key_encryption_key(directory / "kek")),
        "DRAIN_NOTICE_MS": "0",
        **changes,
    }
    return {f"TALLYSTICK_{name}": value for name, value in variables.items()}


def test_settings_come_from_the_environment(tls_for, tmp_path):
    variables = environment(
        tls_for("user"), tmp_path, "sqlite+aiosqlite:///x", "redis://x", PASSWORD_THREADS="3"
    )

    settings = Settings.read(Environment(variables))

    assert settings.password_threads == 3
    assert settings.key_publish.total_seconds() == 10
    assert settings.key_age_max.days == 30


@pytest.mark.parametrize(
    ("name", "value"), [("KEK_FILE", ""), ("KEY_DAYS_MAX", "0"), ("PASSWORD_THREADS", "many")]
)
def test_a_wrong_setting_is_named(tls_for, tmp_path, name, value):
    variables = environment(
        tls_for("user"), tmp_path, "sqlite+aiosqlite:///x", "redis://x", **{name: value}
    )

    with pytest.raises(SettingError, match=f"TALLYSTICK_{name}"):
        Settings.read(Environment(variables))


async def test_a_process_serves_until_it_is_terminated(tls_for, valkey_url, sqlite_url, tmp_path):
    variables = environment(tls_for("user"), tmp_path, sqlite_url("user"), valkey_url)
    log = tmp_path / "log"
    with log.open("w") as output:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "services.user",
            cwd=ROOT,
            env={**os.environ, **variables},
            stderr=output,
        )
    try:

        def port():
            assert process.returncode is None, log.read_text()
            lines = [json.loads(line) for line in log.read_text().splitlines()]
            return next((line["port"] for line in lines if line["message"] == "serving"), None)

        address = f"127.0.0.1:{await eventually(port, seconds=20)}"
        async with channel.connect(address, "user", tls_for("gateway")) as calls:
            stub = auth_service_pb2_grpc.AuthServiceStub(calls)
            answer = await stub.GetSigningKeys(auth_service_pb2.GetSigningKeysRequest())
            assert json.loads(answer.json_web_key_set)["keys"]
    finally:
        process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(15):
            ended = await process.wait()
    assert ended == 0
    assert json.loads(log.read_text().splitlines()[-1])["message"] == "stopped"
