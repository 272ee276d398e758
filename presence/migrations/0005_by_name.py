from django.db import migrations, models
from django.db.models.functions import Lower


class Migration(migrations.Migration):
    dependencies = [("presence", "0004_resend")]

    operations = [
        migrations.AddIndex(
            model_name="presencerecord",
            index=models.Index("namespace", Lower("name"), "user_id", name="presence_record_by_name"),
        ),
    ]
