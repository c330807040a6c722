"""A person's word between the gate and the promotion: Airflow's human in the loop.

Imported only for models whose gate asks for it.
"""

from __future__ import annotations

import logging
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow.providers.standard.operators.hitl import HITLOperator

from batch_jobs import clock
from batch_jobs.interval import parse_time
from batch_jobs_airflow.alerts import send_news
from batch_jobs_airflow.connections import airflow_settings
from batch_jobs_airflow.errors import translated
from batch_jobs_airflow.forms import trained_as_of

if TYPE_CHECKING:
    from airflow.sdk import Context

    from batch_jobs.registry.versions import ModelVersion

log = logging.getLogger(__name__)

APPROVE, REJECT = "Approve", "Reject"


class ApprovalOperator(HITLOperator):
    """Ask whether the newest version may serve; nobody is asked about one that the gate refuses.

    Its XCom tells `promote` which `version` was asked about or approved, `by` whom, and why it was
    `refused`, if it was.

    Args:
        model: its name.
        patience: for how long to wait; then the champion stays.
    """

    def __init__(self, *, model: str, patience: timedelta, **kwargs: Any) -> None:
        super().__init__(
            subject=f"May the new version of {model} serve?",
            options=[APPROVE, REJECT],  # until the version is known
            defaults=REJECT,
            response_timeout=patience,
            **kwargs,
        )
        self.model, self.patience = model, patience

    def execute(self, context: Context) -> dict[str, Any]:
        """Ask, and end here; the answer or the end of patience goes on with `execute_complete`."""
        from batch_jobs.registry import promotion
        from batch_jobs.registry.deployment import Deployment

        with translated():
            deployment = Deployment(airflow_settings())
            trained = trained_as_of(deployment, self.model, context["dag_run"])
            version, may_serve = promotion.candidate(deployment, self.model, trained)
        if not may_serve:
            log.info("nobody is asked about %s: `promote` tells why", version.version)
            return _answer(version.version)
        self.response_timeout = self._time_left(context)
        if self.response_timeout <= timedelta(0):
            return _answer(None, None, self._silence())
        self.subject = f"May {self.model} {version.version} serve?"
        self.body = _body(version)
        # The answer itself names the version: a later one may be trained before it comes, and a
        # question that was asked before is not changed by asking again.
        self.options = [f"{APPROVE} {version.version}", REJECT]
        self._tell_slack(context, version)
        super().execute(context)  # which does not return but waits
        return _answer(version.version)

    def execute_complete(
        self,
        context: Context,  # noqa: ARG002 - Airflow gives it
        event: dict[str, Any],
    ) -> dict[str, Any]:
        """What was chosen, and by whom."""
        if "error" in event:
            self.process_trigger_event_error(event)
        [chosen] = event["chosen_options"]
        by = (event["responded_by_user"] or {}).get("name")
        if chosen != REJECT:
            version = chosen.removeprefix(f"{APPROVE} ")
            log.info("%s approved %s", by, version)
            return _answer(version, by)
        refused = f"{by} rejected it" if by else self._silence()
        log.info("the champion stays: %s", refused)
        return _answer(None, by, refused)

    def _time_left(self, context: Context) -> timedelta:
        """How much of the patience is left: a task that is tried again keeps its deadline.

        A run that is cleared asks anew.
        """
        kept, key = context["task_state_store"], f"asked in #{context['dag_run'].clear_number}"
        asked = kept.get(key)
        if asked is None:
            asked = clock.now().isoformat()
            kept.set(key, asked, retention=2 * self.patience)
        return parse_time(str(asked)) + self.patience - clock.now()

    def _silence(self) -> str:
        from batch_jobs.alerts.mrkdwn import length

        return f"nobody approved it within {length(self.patience)}"

    def _tell_slack(self, context: Context, version: ModelVersion) -> None:
        from batch_jobs.alerts import news
        from batch_jobs.alerts.links import is_of_this_machine

        url = self.generate_link_to_ui(task_instance=context["ti"])
        send_news(
            news.approval_wanted(
                self.model,
                version.version,
                "; ".join(version.gate["reasons"]),
                self.patience,
                None if is_of_this_machine(url) else url,
            ),
            key=f"approval of {self.model} {version.version}",
        )


def _answer(
    version: str | None, by: str | None = None, refused: str | None = None
) -> dict[str, Any]:
    return {"version": version, "by": by, "refused": refused}


def _body(version: ModelVersion) -> str:
    """The gate's verdict, reasons and metrics, as Markdown."""
    from batch_jobs.reports.gate import metrics_table, verdict

    rows = metrics_table(version.gate)
    reasons = [f"- {reason}" for reason in version.gate["reasons"]]
    head = [list(rows[0]), ["---"] * len(rows[0])]
    cells = [[_shown(value) for value in row.values()] for row in rows]
    table = [f"| {' | '.join(line)} |" for line in head + cells]
    return "\n".join([verdict(version.gate), "", *reasons, "", *table])


def _shown(value: object) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)
