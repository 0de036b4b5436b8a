"""One trace follows a payment from the gateway through every service that has a part in it."""

import asyncio
from pathlib import Path

from cli.demo.client import Gateway, Operator
from tallystick.type.v1 import money_pb2, position_pb2
from tests import stacks
from tests.eventually import eventually
from tests.fakes.collector import collecting

HERE = position_pb2.Position(latitude=12.97, longitude=77.59, accuracy_meters=8)
COMMIT = "payment.commit"


async def test_a_payment_is_one_trace_through_gateway_payment_and_fraud(tmp_path):
    async with collecting() as (collector, port):
        environment = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{port}",
            "OTEL_BSP_SCHEDULE_DELAY": "100",
            "TALLYSTICK_OTLP_ADDRESS": f"127.0.0.1:{port}",
            "TALLYSTICK_TRACE_PERCENT": "100",
        }
        stack = await asyncio.to_thread(stacks.start, tmp_path, environment=environment)
        try:
            payment = await _pay(stack)

            def whole():
                for trace in {span.trace_id for span in collector.spans if span.name == COMMIT}:
                    found = [span for span in collector.spans if span.trace_id == trace]
                    if {"gateway", "payment", "fraud"} <= {span.service for span in found}:
                        return found
                return None

            spans = await eventually(whole, seconds=20)
        finally:
            code = await asyncio.to_thread(stack.stop)

    assert code == 0
    assert payment.state == payment.STATE_SUCCESS
    by_id = {span.span_id: span for span in spans}
    roots = [span for span in spans if span.parent_id not in by_id]
    assert len(roots) == 1, spans
    assert roots[0].service == "gateway"
    assert {"payment.assess", COMMIT} <= {span.name for span in spans}
    asked = [span for span in spans if span.service == "fraud"]
    assert [by_id[span.parent_id].name for span in asked] == ["payment.assess"], asked


async def _pay(stack):
    at = stack.endpoints
    async with Gateway(at.grpc, Path(at.ca_file)) as gateway:
        password = await asyncio.to_thread(Path(at.admin_password_file).read_text)
        admin = Operator.of(await gateway.sign_in(at.admin_user, password.strip()))
        await gateway.register_payer("payer", "a long enough phrase", "Payer")
        await gateway.register_vendor("vendor", "a long enough phrase", "Shop", HERE)
        payer = await gateway.sign_in("payer", "a long enough phrase")
        vendor = await gateway.sign_in("vendor", "a long enough phrase")
        for one in (payer, vendor):
            case = await admin.open_case(one.name)
            await admin.decide(case.name, approve=True, reason="known here")
        amount = money_pb2.Money(minor_units=1_00, currency_code="INR")
        # Both accounts are known to payment then; a payment to one that is not is assessed, refused, and tried again.
        for one in (payer, vendor):
            await admin.top_up(one.wallet_name("INR"), amount, "cash")
        return await payer.pay(vendor.name, amount, HERE)
