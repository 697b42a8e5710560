"""Networks looked into, and repaired: the list of methods is ``METHODS``."""

from upcycle.core.method import Method
from upcycle.diagnosis.bags import BAGS
from upcycle.diagnosis.crt import CRT
from upcycle.diagnosis.logitadjust import LogitAdjust
from upcycle.diagnosis.lws import LWS
from upcycle.diagnosis.model_doctor import ModelDoctor
from upcycle.diagnosis.ncm import NCM
from upcycle.diagnosis.simcal import SimCal
from upcycle.diagnosis.tau import Tau

METHODS: tuple[type[Method], ...] = (ModelDoctor, Tau, LogitAdjust, NCM, LWS, CRT, BAGS, SimCal)
