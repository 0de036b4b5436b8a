import asyncio, base64, json, logging
from dataclasses import replace
from uuid import uuid4
import pytest
from services import streams
from services.admin.server import AdminServer
from services.admin.settings import Settings as AS
from services.fraud.server import FraudServer
from services.fraud.settings import Settings as FS
from services.fraud.domain.assessment import Limits
from services.payment.server import PaymentServer
from services.payment.settings import Settings as PS
from services.environment import Environment
from services.rpc import channel
from tallystick.admin.v1 import review_service_pb2 as pb, review_service_pb2_grpc
from tallystick.payment.v1 import payment_service_pb2 as pp, payment_service_pb2_grpc, wallet_service_pb2 as wp, wallet_service_pb2_grpc, payment_pb2
from tests.user_service import serving_users, a_registration, PASSWORD
from tests.eventually import eventually
from tests.review_desk import Person
import time
pytestmark=pytest.mark.parametrize("dialect",["sqlite","mariadb"])

async def test_all(tls_for, valkey_url, database_url, tmp_path, monkeypatch):
    async with serving_users(tls_for, valkey_url, database_url("user"), tmp_path) as users:
        ua=f"127.0.0.1:{users.port}"
        fraud=FraudServer(FS("127.0.0.1:0",database_url("fraud"),valkey_url,ua,tls_for("fraud"),Limits(),0,"INFO"))
        fa=f"127.0.0.1:{await fraud.start()}"
        t=tls_for("payment")
        env={"LISTEN":"127.0.0.1:0","DATABASE_URL":database_url("payment"),"REDIS_URL":valkey_url,"USER_ADDRESS":ua,"FRAUD_ADDRESS":fa,"TLS_CERT_FILE":str(t.certificate_file),"TLS_KEY_FILE":str(t.key_file),"TLS_CA_FILE":str(t.ca_file)}
        payment=PaymentServer(PS.read(Environment({"TALLYSTICK_"+k:v for k,v in env.items()})))
        pa=f"127.0.0.1:{await payment.start()}"
        admin=AdminServer(AS("127.0.0.1:0",database_url("admin"),valkey_url,ua,pa,tls_for("admin"),200,0,"INFO"))
        aa=f"127.0.0.1:{await admin.start()}"
        try:
          async with channel.connect(aa,"admin",tls_for("gateway")) as ac, channel.connect(pa,"payment",tls_for("gateway")) as pc:
            review=review_service_pb2_grpc.ReviewServiceStub(ac)
            pay=payment_service_pb2_grpc.PaymentServiceStub(pc); wal=wallet_service_pb2_grpc.WalletServiceStub(pc)
            am=await users.admin()
            payer=await users.register("payer1"); vendor=await users.register("vendor1",vendor=True); bad=await users.register("bad1")
            async def cases(n, **f):
                async def g():
                    c=(await review.ListCases(pb.ListCasesRequest(**f),metadata=am)).cases
                    return c if len(c)==n else None
                return await eventually(g)
            regs=await cases(3, state=1)
            for c in regs:
                d = 2 if c.user.name==bad.name else 1
                r=await review.DecideCase(pb.DecideCaseRequest(name=c.name,decision=d,reason="seen"),metadata=am)
                print(r.case.state)
                r2=await review.DecideCase(pb.DecideCaseRequest(name=c.name,decision=d,reason="seen"),metadata=am)
                assert r==r2
            pm=await users.person("payer1"); vm=await users.person("vendor1")
            w=await wal.TopUp(wp.TopUpRequest(request_id=str(uuid4()),reference="cash",wallet=f"{payer.name}/wallets/INR",amount={"minor_units":20_000_00,"currency_code":"INR"}),metadata=am) if "wallet" in wp.TopUpRequest.DESCRIPTOR.fields_by_name else None
            print(w)
            async def p(amount,lat):
                q=pp.CreatePaymentRequest(request_id=str(uuid4()),vendor=vendor.name,amount={"minor_units":amount,"currency_code":"INR"},wait=True)
                if lat is not None:
                    q.position.latitude=lat; q.position.longitude=77.5946
                return (await pay.CreatePayment(q,metadata=pm)).payment
            a=await p(100_00,12.97); print(a.state,a.risk)
            b=await p(100_00,14.97); print(b.state,b.risk)
            c=await p(6000_00,12.97); print(c.state,c.risk)
            flags=await cases(2,kind=2,state=1)
            for x,d in zip(flags,(1,2)):
                t0=time.perf_counter()
                r=await review.DecideCase(pb.DecideCaseRequest(name=x.name,decision=d,reason="seen"),metadata=am)
                print("decide ms",(time.perf_counter()-t0)*1e3, r.case.state)
                g=(await pay.GetPayment(pp.GetPaymentRequest(name=x.payment.name),metadata=pm)).payment
                print(g.state,g.failure_reason)
            await asyncio.sleep(0.5)
            for x in (await review.ListCases(pb.ListCasesRequest(),metadata=am)).cases: print(x.kind,x.state,x.decider,x.reason)
        finally:
            await admin.stop(); await payment.stop(); await fraud.stop()
