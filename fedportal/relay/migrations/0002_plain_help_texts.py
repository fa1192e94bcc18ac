"""Help texts in plainer words; nothing changes in the database."""

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("relay", "0001_initial"),
    ]

    operations = [
        migrations.AlterField(
            model_name="remoteinstance",
            name="advert_sha256",
            field=models.CharField(blank=True, help_text="SHA-256 of the site's latest advert.", max_length=64),
        ),
        migrations.AlterField(
            model_name="remoteinstance",
            name="agent",
            field=models.CharField(blank=True, help_text="User-Agent of the site's polls.", max_length=80),
        ),
        migrations.AlterField(
            model_name="remoteinstance",
            name="allowed_dags",
            field=models.JSONField(default=dict, help_text="DAG → its forms, as advertised by the site."),
        ),
        migrations.AlterField(
            model_name="remoteinstance",
            name="allowed_datasets",
            field=models.JSONField(
                default=list, help_text="Names and identifiers; only the site itself can decrypt the identifiers."
            ),
        ),
        migrations.AlterField(
            model_name="remoteinstance",
            name="automatic_update",
            field=models.BooleanField(default=False, help_text="The site polls automatically."),
        ),
        migrations.AlterField(
            model_name="remoteinstance",
            name="automatic_workflow_execution",
            field=models.BooleanField(default=False, help_text="Runs start without confirmation by a steward."),
        ),
        migrations.AlterField(
            model_name="remoteinstance",
            name="clock_skew",
            field=models.FloatField(blank=True, help_text="Seconds by which the site's clock is ahead.", null=True),
        ),
        migrations.AlterField(
            model_name="remoteinstance",
            name="dialect",
            field=models.CharField(blank=True, help_text="Which variant of the protocol the site uses.", max_length=8),
        ),
        migrations.AlterField(
            model_name="remoteinstance",
            name="heard_at",
            field=models.DateTimeField(blank=True, help_text="When the site last polled.", null=True),
        ),
        migrations.AlterField(
            model_name="remoteinstance",
            name="token_digest",
            field=models.CharField(help_text="SHA-256 of the site's token.", max_length=64, unique=True),
        ),
        migrations.AlterField(
            model_name="remotejob",
            name="delivered_at",
            field=models.DateTimeField(blank=True, help_text="When a poll last handed it out.", null=True),
        ),
        migrations.AlterField(
            model_name="remotejob",
            name="heard_at",
            field=models.DateTimeField(blank=True, help_text="When the site last reported its state.", null=True),
        ),
        migrations.AlterField(
            model_name="remotejob",
            name="is_check",
            field=models.BooleanField(default=False, help_text="A check of the site, not part of an experiment."),
        ),
        migrations.AlterField(
            model_name="remotejob",
            name="remote_run_id",
            field=models.CharField(blank=True, help_text="Name of the run in the site's Airflow.", max_length=250),
        ),
    ]
