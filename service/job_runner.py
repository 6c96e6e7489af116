"""The thread that runs jobs. It keeps only a few photographs in flight, so that requests are not held up."""

from __future__ import annotations

import threading
import uuid

import structlog

from service.engine import Engine
from service.job_record import FINISHED, JobRecord
from service.job_run import JobRun, Surroundings, TakenOver, is_overdue
from service.jobs import Jobs
from service.settings import Settings
from service.sources import Sources

logger = structlog.get_logger(__name__)
PAUSES = (60.0, 1.0, 2.0, 5.0, 10.0, 20.0, 60.0)
"""Seconds until jobs are looked for without being woken: if none has to wait, and after the first, second, ... attempt
in a row at one that has to."""


class JobRunner:
    """Runs the unfinished jobs, oldest first; after a restart it resumes where it was stopped.

    Args:
        jobs: the stored jobs.
        engine: engine that segments the photographs.
        settings: limits of photographs and jobs.
        sources: folders that jobs may read.
    """

    def __init__(self, jobs: Jobs, engine: Engine, settings: Settings, sources: Sources) -> None:
        self._jobs, self._engine = jobs, engine
        self._around = Surroundings(jobs, engine, settings, sources, name=uuid.uuid4().hex)
        self._wake = threading.Event()
        self._thread = threading.Thread(target=self._run, name="jobs", daemon=True)

    def adopt(self, settings: Settings, sources: Sources) -> None:
        """Use other limits and folders from now on."""
        self._around.settings, self._around.sources = settings, sources

    def start(self) -> None:
        """Start the thread."""
        self._wake.set()
        self._thread.start()

    def wake(self) -> None:
        """Tell the thread that there is a new job."""
        self._wake.set()

    def stop(self) -> None:
        """Stop the thread once the photographs that are being segmented are finished.

        A thread that the storage of jobs does not answer is left behind after ``deadline`` seconds; the job goes on at
        the next start.
        """
        self._around.stopping.set()
        self._wake.set()
        self._thread.join(self._around.settings.deadline)
        if self._thread.is_alive():
            logger.warning("stopped while a job was being run; it goes on at the next start")

    def run_once(self) -> bool:
        """Run every unfinished job; return False if one has to be tried again, which does not stop the others."""
        all_done = True
        try:
            records = self._jobs.delete_old()
            self._jobs.delete_incomplete(records)
        except Exception:  # the storage is unavailable
            logger.exception("jobs cannot be run now")
            return False
        for record in [record for record in records if record.state not in FINISHED]:
            try:
                all_done &= self._run_if_free(record)
            except Exception:
                logger.exception("a job cannot be run now", job=record.id)
                all_done = False
        return all_done

    def _run(self) -> None:
        with self._jobs.claims:
            attempts = 0
            while not self._around.stopping.is_set():
                if self._wake.wait(PAUSES[attempts]):
                    attempts = 0  # a new job does not wait as long as an old one that has failed often
                self._wake.clear()
                attempts = 0 if self.run_once() else min(attempts + 1, len(PAUSES) - 1)

    def _run_if_free(self, found: JobRecord) -> bool:
        """Run a job, unless another service is running it; return False if it has to be tried again."""
        known = found.options.model in (None, *self._engine.models.by_name)
        not_loaded = f"the model {found.options.model} is not loaded"
        if not known and found.trouble == not_loaded and not is_overdue(found, self._around.settings):
            return True  # another service has its model, and the record says so already
        if not self._jobs.claims.acquire(found.id):
            return True
        try:
            record = self._jobs.read(found.id)  # another service may have changed it since it was listed
            if record is None or record.state in FINISHED:
                return True
            if known:
                return JobRun(record, self._around).run()
            # Another service has the model, or a reload has removed it.
            JobRun(record, self._around).wait(not_loaded)
        except TakenOver:
            logger.warning("a job has been taken over by another service", job=found.id)
        finally:
            self._jobs.release(found.id)
        return True
